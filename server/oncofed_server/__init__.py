"""The aggregator: who takes part, which step comes next, what the result is. Imports `oncofed_shared` and `oncofed_strategies`."""
