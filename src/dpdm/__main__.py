"""`python -m dpdm`."""

from dpdm.cli import main

if __name__ == "__main__":
    main()
