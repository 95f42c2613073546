"""Forward noising, training objective and reverse sampling."""
