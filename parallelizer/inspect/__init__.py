"""Reading plans: as text, as a page, one array at a time, and two against each other."""
