"""How good generated sound is: metrics, and a page to listen to."""
