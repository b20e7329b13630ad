"""Common code of the programs: flags, output files and Ctrl-C."""
