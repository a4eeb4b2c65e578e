"""Find the package whose new version changed a result: bisect the versions between two environments."""
