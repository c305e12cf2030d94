"""Methods and settings side by side on one base model: quality, cost and samples of each."""
