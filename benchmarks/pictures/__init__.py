"""A pretrained network on pictures that its training did not see: drawings of Debian's openclipart on varied backgrounds."""
