"""The documentation's site, as Lighthouse judges it."""
