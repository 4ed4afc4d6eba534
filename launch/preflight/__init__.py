"""What is looked at before a run: real ranks gather facts, rank 0 compares them."""
