"""Two sample models, made on the spot from a MiniLM base and small committed adapters.

``ticket_routing`` sorts customer messages into six desks; ``document_qa`` finds an answer in a paragraph or says that
there is none. ``python -m samples --help`` lists what can be done with them.
"""
