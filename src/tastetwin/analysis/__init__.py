"""Full-user analysis: encode every user, index the vectors, list every user's twins, say why."""
