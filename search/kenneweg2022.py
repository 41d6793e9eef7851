"""`python -m lr_dist.search.kenneweg2022`: the command named in the shipped presets, see `combining.kenneweg2022`."""

from lr_dist.search.combining.kenneweg2022 import main

if __name__ == "__main__":
    main()
