"""What all HTML pages share: their frame, the styles, two small scripts, and figures that fit into them."""
