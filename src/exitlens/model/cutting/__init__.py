"""From a backbone to stages: trace, cut, verify, count."""
