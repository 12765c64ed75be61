"""What a Router offers by key: where a key is, how one write is made once, and the operations of each type."""
