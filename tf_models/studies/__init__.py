"""What is trained, how, and what a study makes of it: tasks, runs, tables, pictures."""
