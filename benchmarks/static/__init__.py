"""Against what one would use instead: a smaller static network of equal time, distilled from the full one."""
