"""All layers together: which slices and ranks a budget allows."""
