"""One pass over data: layer inputs in, statistics of each input group out; no ray, no store, no method's name."""
