"""From declarations and facts to model cards."""
