"""Everything that touches a model: load it, resolve target layers, tap their inputs."""
