"""What a run will take, from the model's config alone: memory, traffic, work and seconds of a step."""
