"""What all coordinators share: state of one key space, kept in the partitions of an internal topic."""
