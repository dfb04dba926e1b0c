"""The aggregator as a service: its folder, keys and certificates, who is enrolled, its processes, its studies."""
