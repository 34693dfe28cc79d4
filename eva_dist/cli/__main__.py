"""`python -m eva_dist.cli`: the same as `eva-dist`."""

from eva_dist.cli.main import main

if __name__ == "__main__":
    main()
