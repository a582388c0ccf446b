"""What the router costs: real router processes between simulated workers and a load client."""
