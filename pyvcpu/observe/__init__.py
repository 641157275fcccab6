"""What sees a run: statistics, a timeline, an explanation in words."""
