"""What Prometheus and Grafana ask of a Server: `/metrics`, and PromQL over the States' history."""
