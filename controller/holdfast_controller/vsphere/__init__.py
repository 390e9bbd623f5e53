"""The only place that speaks to vSphere; returns our own values."""
