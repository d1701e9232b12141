"""Training over several processes: sequences in parts, replicas of the data, processes that die."""
