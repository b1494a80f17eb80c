"""Time: the timer, the machine, and how long a network takes at each exit."""
