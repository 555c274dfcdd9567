// One server on Azure Container Apps, replicated to a Storage account, with its secrets in a Key Vault.
//
// A replica's disk vanishes with it, so the server waits for the Storage account before it acknowledges a write
// (PDS_DURABILITY=remote, the default with a replica), and a new replica starts from there.

targetScope = 'resourceGroup'

@description('Name from which the names of all resources are made: lower-case letters and digits.')
@minLength(3)
@maxLength(11)
param name string

@description('Azure region.')
param location string = resourceGroup().location

@description('Public host name of the server, such as pds.example.com.')
param hostname string

@description('Image to run, with its registry and tag or digest.')
param image string

@description('Azure Container Registry to pull from, such as myregistry.azurecr.io, with the identity below (grant it AcrPull there). Empty: the image is public.')
param registryServer string = ''

@description('CPU cores of the container, as text, such as 0.5.')
param cpu string = '0.5'

@description('Memory of the container: twice the cores, in Gi.')
param memory string = '1Gi'

@description('Whether new accounts need an invite code.')
param inviteRequired bool = true

@description('Redundancy of the Storage account, which holds the only durable copy of the log.')
@allowed([
  'Standard_ZRS'
  'Standard_LRS'
  'Standard_GZRS'
])
param storageSku string = 'Standard_ZRS'

@description('Days for which Azure keeps deleted objects; 0 = not at all. Log chunks are deleted all the time once a sealed segment covers them, so this costs space, and deleted data stays recoverable that much longer.')
@minValue(0)
@maxValue(365)
param softDeleteDays int = 7

@description('Key of the session tokens, at least 16 characters.')
@secure()
param jwtSecret string

@description('Password of the user admin.')
@secure()
param adminPassword string

@description('secp256k1 private key in hex that signs did:plc operations. Keep a copy: it cannot be replaced.')
@secure()
param plcRotationKeyHex string

@description('32 bytes in hex that wrap the signing keys in the log. Keep a copy: it cannot be replaced.')
@secure()
param keyEncryptionKeyHex string

var suffix = uniqueString(resourceGroup().id, name)
var containerName = 'log'
var port = 2583
// Built-in roles.
var storageBlobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'
var keyVaultSecretsUser = '4633458b-17de-408a-b874-0445c86b69e6'

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-identity'
  location: location
}

resource storage 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: take('${name}${suffix}', 24)
  location: location
  kind: 'StorageV2'
  sku: {
    name: storageSku
  }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowSharedKeyAccess: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
  }
}

resource blobService 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: storage
  name: 'default'
  properties: {
    // Objects are created once and never overwritten: versions would only keep what was deleted on purpose.
    isVersioningEnabled: false
    deleteRetentionPolicy: softDeleteDays > 0 ? {
      enabled: true
      days: softDeleteDays
    } : {
      enabled: false
    }
    // Against the deletion of the whole container by mistake.
    containerDeleteRetentionPolicy: {
      enabled: true
      days: 30
    }
  }
}

resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobService
  name: containerName
  properties: {
    publicAccess: 'None'
  }
}

resource mayUseContainer 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(container.id, identity.id, storageBlobDataContributor)
  scope: container
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', storageBlobDataContributor)
  }
}

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' = {
  name: take('${name}${suffix}', 24)
  location: location
  properties: {
    tenantId: subscription().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enableSoftDelete: true
    // Losing these keys loses the accounts' identities.
    enablePurgeProtection: true
    softDeleteRetentionInDays: 90
  }
}

resource jwtSecretEntry 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'jwt-secret'
  properties: {
    value: jwtSecret
  }
}

resource adminPasswordEntry 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'admin-password'
  properties: {
    value: adminPassword
  }
}

resource plcRotationKeyEntry 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'plc-rotation-key'
  properties: {
    value: plcRotationKeyHex
  }
}

resource keyEncryptionKeyEntry 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'key-encryption-key'
  properties: {
    value: keyEncryptionKeyHex
  }
}

resource mayReadSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(vault.id, identity.id, keyVaultSecretsUser)
  scope: vault
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', keyVaultSecretsUser)
  }
}

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: '${name}-logs'
  location: location
  properties: {
    retentionInDays: 30
    sku: {
      name: 'PerGB2018'
    }
  }
}

resource apps 'Microsoft.App/managedEnvironments@2024-03-01' = {
  name: '${name}-apps'
  location: location
  properties: {
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: {
        customerId: logs.properties.customerId
        sharedKey: logs.listKeys().primarySharedKey
      }
    }
  }
}

resource app 'Microsoft.App/containerApps@2024-03-01' = {
  name: name
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  // The server claims the log when it starts, so it must be allowed to by then.
  dependsOn: [
    mayUseContainer
    mayReadSecrets
  ]
  properties: {
    managedEnvironmentId: apps.id
    configuration: {
      // One writer: two revisions at once would take the log from each other.
      activeRevisionsMode: 'Single'
      ingress: {
        external: true
        targetPort: port
        // The firehose is a WebSocket over HTTP/1.1.
        transport: 'auto'
        allowInsecure: false
      }
      registries: empty(registryServer) ? [] : [
        {
          server: registryServer
          identity: identity.id
        }
      ]
      secrets: [
        {
          name: 'jwt-secret'
          keyVaultUrl: jwtSecretEntry.properties.secretUri
          identity: identity.id
        }
        {
          name: 'admin-password'
          keyVaultUrl: adminPasswordEntry.properties.secretUri
          identity: identity.id
        }
        {
          name: 'plc-rotation-key'
          keyVaultUrl: plcRotationKeyEntry.properties.secretUri
          identity: identity.id
        }
        {
          name: 'key-encryption-key'
          keyVaultUrl: keyEncryptionKeyEntry.properties.secretUri
          identity: identity.id
        }
      ]
    }
    template: {
      // SIGTERM: drain, flush, ship, in less than ten seconds with a healthy store.
      terminationGracePeriodSeconds: 30
      scale: {
        minReplicas: 1
        maxReplicas: 1
      }
      volumes: [
        {
          name: 'data'
          storageType: 'EmptyDir'
        }
      ]
      containers: [
        {
          name: 'pds'
          image: image
          resources: {
            cpu: json(cpu)
            memory: memory
          }
          volumeMounts: [
            {
              volumeName: 'data'
              mountPath: '/data'
            }
          ]
          env: [
            {
              name: 'PDS_HOSTNAME'
              value: hostname
            }
            {
              name: 'PDS_PORT'
              value: string(port)
            }
            {
              name: 'PDS_DATA_DIRECTORY'
              value: '/data/pds'
            }
            {
              name: 'PDS_INVITE_REQUIRED'
              value: inviteRequired ? 'true' : 'false'
            }
            {
              name: 'PDS_REPLICA_URL'
              value: '${storage.properties.primaryEndpoints.blob}${containerName}/cell'
            }
            {
              name: 'PDS_REPLICA_AZURE_AUTH'
              value: 'managed-identity'
            }
            {
              name: 'PDS_REPLICA_AZURE_CLIENT_ID'
              value: identity.properties.clientId
            }
            {
              name: 'PDS_JWT_SECRET'
              secretRef: 'jwt-secret'
            }
            {
              name: 'PDS_ADMIN_PASSWORD'
              secretRef: 'admin-password'
            }
            {
              name: 'PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX'
              secretRef: 'plc-rotation-key'
            }
            {
              name: 'PDS_KEY_ENCRYPTION_KEY_HEX'
              secretRef: 'key-encryption-key'
            }
          ]
          probes: [
            {
              // True from the first moment, also while the log is replayed.
              type: 'Liveness'
              httpGet: {
                path: '/_health/live'
                port: port
              }
              initialDelaySeconds: 5
              periodSeconds: 10
              timeoutSeconds: 3
              failureThreshold: 3
            }
            {
              // False while the log is restored and replayed, when fenced, and when shipping is late.
              type: 'Readiness'
              httpGet: {
                path: '/_health/ready'
                port: port
              }
              periodSeconds: 5
              timeoutSeconds: 3
              failureThreshold: 3
              successThreshold: 1
            }
          ]
        }
      ]
    }
  }
}

@description('Name under which the server is reachable before hostname points to it.')
output fqdn string = app.properties.configuration.ingress.fqdn

@description('Identity of the server, for AcrPull on a private registry.')
output identityPrincipalId string = identity.properties.principalId

@description('Where the log is.')
output replicaUrl string = '${storage.properties.primaryEndpoints.blob}${containerName}/cell'
