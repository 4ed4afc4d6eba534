"""List the recipes: `python -m recipes`."""

if __name__ == "__main__":
    from commands.recipes import main

    main()
