"""What a group of ranks costs: step time, communication and memory by layout."""
