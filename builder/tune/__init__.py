"""What is measured on the machine that will serve: workers and threads, and cuBLASLt's algorithms."""
