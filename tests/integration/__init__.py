"""The examples under real servers, frameworks and workers. ``nox -s integration`` runs them."""
