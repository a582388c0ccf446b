"""What the router costs: real router processes between simulated workers and a load client."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
