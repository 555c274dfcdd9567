using 'main.bicep'

param name = 'mypds'
param hostname = 'pds.example.com'
param image = 'ghcr.io/example/azure-pds:0.1.0'

// From the environment of whoever deploys, never from a file: openssl rand -hex 32 makes each.
param jwtSecret = readEnvironmentVariable('PDS_JWT_SECRET')
param adminPassword = readEnvironmentVariable('PDS_ADMIN_PASSWORD')
param plcRotationKeyHex = readEnvironmentVariable('PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX')
param keyEncryptionKeyHex = readEnvironmentVariable('PDS_KEY_ENCRYPTION_KEY_HEX')
