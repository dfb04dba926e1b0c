"""What both sides agree on: the plan, messages, the network, arithmetic, metrics as sums. Imports nothing of ours."""
