"""The search for a training's settings, for ``charrnn-fast tune``: by Optuna, within a budget.

- `space`: which settings are tried, and the bounds that the budget sets
- `search`: the trials, one after another; the study in a file; what ends a trial early
- `report`: the table and the picture of what was tried

Optuna is imported by `search` alone, and only there.
"""
