"""`tandem bench handoff`: what moving a request's state costs, beside a plain NIXL write."""
