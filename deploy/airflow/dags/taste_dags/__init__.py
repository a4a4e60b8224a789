"""What the two DAG files share: settings, pods, where training runs, alerts. Imports nothing of tastetwin."""
