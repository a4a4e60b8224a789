"""The Pub/Sub API: user events from Kafka to the model gateway, changed twin lists back to Kafka."""
