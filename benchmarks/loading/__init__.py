"""How image folders are read: seconds to the first batch, memory, and images a second against torchvision's loader."""
