"""Evaluations from beginning to end: `evaluate.run_evaluation`, `sweep.command.run_sweep_command` and
`served.measure_served` are the three, and `opening.open_evaluator` makes the evaluator that all of them ask."""
