"""Whether the cases that a site sends now are still like those that its model was made with. Reads what the stages wrote, changes nothing."""
