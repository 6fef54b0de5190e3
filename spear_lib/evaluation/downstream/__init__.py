"""SUPERB's tasks on frozen encoders without s3prl: small heads after its definitions, and their scores."""
