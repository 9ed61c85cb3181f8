"""What other pruning methods need beside the stages that all share."""
