"""The commands of `structprune`, a family in each file. A command is a function that adds its arguments to a parser
and says, with `set_defaults(run=...)`, what to run; its docstring is its help, and `run` may return an exit code."""
