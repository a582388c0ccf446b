"""Tandem on Kubernetes: the custom resource, the operator, the chart."""
