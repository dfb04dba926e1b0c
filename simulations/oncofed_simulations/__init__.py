"""The same roles in one process: cohorts, baselines, comparisons. Imports all four; nobody imports it."""
