"""Error of a recipe."""


class RecipeError(ValueError):
    """Recipe that cannot be used; the message has one line per problem."""
